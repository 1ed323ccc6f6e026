"""Tables of experiments: many trainings and evaluations that differ in what is studied, by one command."""
