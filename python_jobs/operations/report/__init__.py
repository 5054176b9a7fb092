"""`two-tower report`: the last weeks on a terminal, or as a page with plots."""
