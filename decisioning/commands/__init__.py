"""Commands over the whole portal: the top of the house, which nothing imports."""
