"""The gradient of Theorem 4.1, one file per object of the theorem. Imports torch and `jacrec.models`, nothing above."""
