"""How much a model bears: common corruptions, small perturbations, and attacks.

    corruptions     ImageNet-C's and CIFAR-C's corruptions of a picture, seeded by its key
    small           how CIFAR-C makes them at 32 pixels
    perturbations   ImageNet-P's and CIFAR-P's sequences, and flip rates
    adversarial     FGSM and PGD
    scores          mean corruption error, mCE, mFR: numbers in, numbers out
    pictures        what the models are shown
    work            what tasks and actors do
    suites          the Ray job that puts test images through all of it

Definitions and sources: docs/robustness.md.
"""
