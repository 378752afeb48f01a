"""Operations between products in one pass each, by C that is compiled for the machine at hand where a compiler is."""
