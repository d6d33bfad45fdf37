"""Operations whose second derivatives are those of the step that a network trains by."""
