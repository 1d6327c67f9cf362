"""The fictional worlds of the demo: names, facts, scripted traces, warm start."""
