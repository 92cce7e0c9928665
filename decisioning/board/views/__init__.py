"""Web doors: find out who asks, make one domain call or ask one presenter, hand the dict to a template."""
