"""The kinds of credentials that ship, one module each; `credentials.kinds` finds them."""
