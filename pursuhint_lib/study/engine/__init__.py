"""From a profile to executed notebooks: plan, estimate, checks, execution."""
