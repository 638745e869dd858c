"""The subject tables that ship with the application, one module each."""
