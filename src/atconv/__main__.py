"""`python -m atconv`, as torchrun starts it: torchrun --nproc_per_node N -m atconv train DATA ..."""

from atconv_command import main

if __name__ == "__main__":
    main()
