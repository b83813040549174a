"""What the administrator writes: the rule model, its schema, the files and where in them a thing stands."""
