"""How fast the dashboard answers: `store` is what it is asked of, `visits` what is asked."""
