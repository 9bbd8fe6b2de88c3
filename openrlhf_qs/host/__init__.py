"""All contact with OpenRLHF: its entry points run unmodified, our plugins enter at the seams in this folder."""
