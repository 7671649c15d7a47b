"""SK-CONV and SK-FC: layers whose weight is a tensor sketch."""
