"""The story of a knock, told with real packets between private network namespaces."""
