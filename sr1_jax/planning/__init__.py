"""What a run costs on TPUs, read from its compiled programs on a machine without any."""
