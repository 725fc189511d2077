"""The privileged process: a few fixed verbs about boxes. Small, boring, and the part to audit."""
