"""Pictures: one style, and the figures that several stages draw. They take plain numbers, and know no stage."""
