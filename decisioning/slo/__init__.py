"""The portal's promises about itself."""
