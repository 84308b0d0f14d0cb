"""Judged answers: how good they are in the eyes of another model, from 1 to 10."""
