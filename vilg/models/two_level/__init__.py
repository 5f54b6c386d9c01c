"""The second unified transformer (Huang et al., ACM MM 2021): dense features in, ids out, drawn masked."""
