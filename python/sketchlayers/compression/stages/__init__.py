"""The stages of `compress`: each is a function from what is known to a frozen dataclass."""
