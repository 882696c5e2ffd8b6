"""Wing C, for the people who run it: what they can do, and the ways to do it."""
