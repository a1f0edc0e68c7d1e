"""Data steps: from a catalogue or a folder of products to a packed, checked dataset."""
