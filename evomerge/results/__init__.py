"""What came of a study: certificates, fronts, warnings, tables and exports."""
