"""What is told to the outside: in words, by which way, and when."""
