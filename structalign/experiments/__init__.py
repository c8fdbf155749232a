"""Running many experiments: what a study asks for, where each run happens, and on which machine."""
