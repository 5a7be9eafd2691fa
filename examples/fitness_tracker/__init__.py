"""A fitness coach that remembers: an example application of agent_memory."""
