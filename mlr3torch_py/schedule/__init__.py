"""When: tables, conditions, plans, recipes, and all of it as plain data."""
