"""What every room uses: errors in one form, whole files, processors."""
