"""Studies of small domains, each a verb `posttrain control <name>`: what is compared, on what, and for how long."""
