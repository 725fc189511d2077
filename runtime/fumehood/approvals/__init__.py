"""What people are asked about calls that wait: the question, signed answers to it, who may give them, and how they are told."""
