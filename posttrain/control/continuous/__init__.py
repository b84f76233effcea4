"""Continuous control: MuJoCo tasks of dm_control, gymnasium's tasks, and a grid world with exact values."""
