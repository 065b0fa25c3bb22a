"""From played games to documents: seeded stretches, their pictures, their engines."""
