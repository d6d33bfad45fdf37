"""The optimizers' rules in closed form: their adjoints, and their tangents."""
