"""When: tables, conditions, plans, recipes, and all of these as plain data."""
