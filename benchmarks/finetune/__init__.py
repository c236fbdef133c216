"""Fine-tuning a candidate as a classifier: (Super)GLUE and MSGS."""
