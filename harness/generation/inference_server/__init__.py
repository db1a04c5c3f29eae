"""Scripts run by other interpreters. Python puts a script's folder first on its path, so no other module may be here."""
