"""What keeps a host from working: facts are gathered first, and judged then."""
