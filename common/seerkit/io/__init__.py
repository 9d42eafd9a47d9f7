"""What is read and written: files, images, videos, records, tables, claims."""
