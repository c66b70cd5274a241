# SPDX-License-Identifier: Apache-2.0
"""The parts that all experiments share: runs are defined, made, kept, planned and shown here."""
