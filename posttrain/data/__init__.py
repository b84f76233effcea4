"""From a file's line to tokens and masks: parsing, sources, encoding, collation, and the audit before step 0."""
