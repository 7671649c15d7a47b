"""The paper's figures: the methods that they compare, their points, runs that go on, results."""
