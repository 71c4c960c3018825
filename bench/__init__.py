"""What is fast, measured beside what people use today. Run by `make bench`; never part of the tests."""
