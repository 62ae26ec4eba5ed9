"""A checkpoint as a policy that acts, and the interventions on its world memory."""
