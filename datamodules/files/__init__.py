"""From files to documents: what a folder, a tar, a table or an index holds, and its windows."""
