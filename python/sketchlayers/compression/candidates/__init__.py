"""Networks of several sizes: evaluated, searched for, beside each other."""
