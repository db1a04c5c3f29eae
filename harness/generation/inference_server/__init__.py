"""Scripts run by other interpreters. Python puts a script's folder first on its path: no other module may be here."""
