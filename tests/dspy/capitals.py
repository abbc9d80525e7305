"""What the tests ask for."""

CAPITALS = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Japan": "Tokyo", "Norway": "Oslo", "Peru": "Lima"}
