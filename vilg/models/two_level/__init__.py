"""The second unified transformer (Huang et al., ACM MM 2021): dense features in, discrete ids out, masked prediction."""
