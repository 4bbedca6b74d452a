from .study import ablate as ablate
