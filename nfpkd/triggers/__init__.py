"""What a knock may start: rules' commands, run by a helper process of its own."""
